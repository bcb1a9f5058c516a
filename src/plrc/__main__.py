"""`python -m plrc` is the command `plrc`."""

import sys

from plrc.cli import main

sys.exit(main())
