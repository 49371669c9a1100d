"""One function per command; heavy imports happen inside, so that `--help` answers at once."""
