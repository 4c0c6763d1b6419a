"""Frozen experts, their taps, and the run that fills a store.

Called, it is the stage itself: championship_sr.stages.
"""

import sys

from championship_sr import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
