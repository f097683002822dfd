"""Checks on answers: a file for each family, and one that makes all of them."""

from opsin.synthesize.checks.examination import examine, examine_raw, harmless, is_looked_up, repair_text
from opsin.synthesize.checks.injection import suspicious

__all__ = ["examine", "examine_raw", "harmless", "is_looked_up", "repair_text", "suspicious"]
