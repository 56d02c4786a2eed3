"""What is shipped in config/, as tests read it."""

from __future__ import annotations

from pathlib import Path

import yaml

from service.model.lines import PatternSet

CONFIG = Path(__file__).parents[1] / "config"


def patterns(*names: str) -> PatternSet:
    """These sets of log patterns as one, in order."""
    sets = [PatternSet.model_validate(yaml.safe_load((CONFIG / "logs" / f"{name}.yaml").read_text())) for name in names]
    return sets[0].model_copy(update={"patterns": tuple(one for each in sets for one in each.patterns)})
