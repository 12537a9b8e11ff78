"""`ray_unlearn reproduce`: an exported trial again, or a paper's experiment."""

from __future__ import annotations

from ray_unlearn.commands.options import Reproduce
from ray_unlearn.models.loading import trust_remote_code


def run(options: Reproduce) -> int:
    trust_remote_code(options.trust_remote_code)
    if options.what.endswith(".json"):
        from ray_unlearn.commands.repeat_export import repeat

        return repeat(options)
    from ray_unlearn.commands.reproduce_paper import reproduce

    return reproduce(options)
