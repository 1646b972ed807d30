"""`python -m clebsch` is the command `clebsch`."""

import sys

from clebsch.cli import main

sys.exit(main())
