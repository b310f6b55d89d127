"""Runs the command line as `python -m torchtune_speech`."""

import sys

from torchtune_speech.cli import main

sys.exit(main())
