"""Looking for the settings with which an editor writes, spreads and spares on a given model."""
