"""What training with the mixture costs beside a float net: ``make bench``.

All that is compared is measured in one run, in turn, on one machine. See
docs/performance.md for what the figures say.
"""
