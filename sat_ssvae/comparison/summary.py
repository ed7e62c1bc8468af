"""The few lines that `sat-ssvae compare` ends with; the report holds the rest."""

from .analysis import SpeedUp
from .results import ComparisonResults
from .verdict import Verdict, describe, judge, quality_name, quality_text, speed_up_text


def summary_table(results: ComparisonResults) -> str:
    """Speed-up by metric, reconstruction quality, and the verdict, as plain text."""
    lines = [*results.warnings, ""] if results.warnings else []
    for candidate in results.candidates:
        verdict = judge(results, candidate.name)
        lines.append(f"{candidate.name} against {results.baseline.name}")
        if verdict.conclusion != "not judgeable":  # its numbers would be read as results
            lines += [_speed_up_line(read, verdict) for read in verdict.speed_ups]
        for metric, estimate in candidate.reconstruction.items():
            ours = quality_text(metric, estimate)
            theirs = results.baseline.reconstruction.get(metric)
            against = f" ({results.baseline.name} {quality_text(metric, theirs)})" if theirs else ""
            lines.append(f"  {quality_name(metric):<72} {ours}{against}")
        lines += ["", *verdict.sentences, ""]
    return "\n".join(lines).rstrip()


def _speed_up_line(read: SpeedUp, verdict: Verdict) -> str:
    note = "" if read in verdict.counted else " - measures blur" if read.measures_blur else " - no evidence"
    return f"  {'speed-up: ' + describe(read.metric).label:<72} {speed_up_text(read)}{note}"
