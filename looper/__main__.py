"""`python -m looper` is the command `looper`."""

import sys

from looper.cli import main

sys.exit(main())
