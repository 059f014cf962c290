import sys

from hcpdiff.cli import main

sys.exit(main())
