"""`ray_unlearn verify`: every file of a search against its checksum."""

from __future__ import annotations

from ray_unlearn.commands.checks import check_writable
from ray_unlearn.commands.exit_codes import FAILED
from ray_unlearn.commands.options import Verify
from ray_unlearn.commands.reopen import fetched
from ray_unlearn.records.verify import describe_findings, verify_search


def run(options: Verify) -> int:
    place = fetched(options.folder)
    if options.repair:
        check_writable(place, "--repair", "Leave --repair out, or copy the folder to a place that can be")
    findings = verify_search(place, options.repair)
    print(describe_findings(place, findings))
    return FAILED if any(not finding.is_repaired for finding in findings) else 0
