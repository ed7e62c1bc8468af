"""The few lines that `sat-ssvae compare` ends with; the report holds the rest."""

from .results import ComparisonResults
from .verdict import describe, judge, quality_name, quality_text, speed_up_text


def summary_table(results: ComparisonResults) -> str:
    """Speed-up by metric, reconstruction quality, and the verdict, as plain text."""
    lines = []
    for candidate in results.candidates:
        lines.append(f"{candidate.name} against {results.baseline.name}: speed-up to the baseline's final score")
        verdict = judge(results, candidate.name)
        for read in verdict.speed_ups:
            blur = " - measures blur" if read.measures_blur else ""
            lines.append(f"  {describe(read.metric).label:<72} {speed_up_text(read)}{blur}")
        for metric, estimate in candidate.reconstruction.items():
            ours = quality_text(metric, estimate)
            theirs = quality_text(metric, results.baseline.reconstruction[metric])
            lines.append(f"  {quality_name(metric):<72} {ours} ({results.baseline.name} {theirs})")
        lines += ["", *verdict.sentences, ""]
    return "\n".join(lines).rstrip()
