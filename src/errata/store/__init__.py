"""Files that outlive a process: caches, locks, run folders, where things came from."""
