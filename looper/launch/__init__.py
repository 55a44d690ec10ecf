"""Several processes on this machine: the launcher that starts and watches them, and what each of them does for it."""
