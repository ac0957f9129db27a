"""The classes behind `service_names`: older interfaces over the package's own parts."""
