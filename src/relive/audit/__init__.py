"""Is a dataset what it claims to be? A few checks, each certain.

    report = relive.audit.check(source)  # or a ReplayBuffer
    print(report)
    assert report.passes

A finding is an error, or a warning that says under which condition the data are right. Nothing is changed.
"""

from relive.audit.one_pass import check
from relive.audit.paths import check_path
from relive.audit.report import Check, Finding, Place, Report

__all__ = ["Check", "Finding", "Place", "Report", "check", "check_path"]
