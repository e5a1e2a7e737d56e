"""`python -m errata`, which launchers of several processes need."""

from errata.cli.app import main

if __name__ == "__main__":
    main()
