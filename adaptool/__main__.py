"""`python -m adaptool`."""

import sys

from adaptool.cli import main

sys.exit(main())
