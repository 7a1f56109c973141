"""What the doctor finds: a fact, what is wrong with it, what to do; and all of them as a report."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: a fact, and what is wrong with it if anything is.

    Attributes:
        section: the heading under which it stands.
        name: what was looked at.
        value: what was found.
        problem: what will not work because of it; empty if nothing.
        remedy: what to do about it.
        is_fatal: whether text to checkpoint does not work, with the configurations of this
            repository.
    """

    section: str
    name: str
    value: str
    problem: str = ""
    remedy: str = ""
    is_fatal: bool = False


def report(findings: list[Finding]) -> str:
    """The findings as text: facts by section, then the problems with their remedies."""
    lines = []
    width = max(len(finding.name) for finding in findings)
    for section in dict.fromkeys(finding.section for finding in findings):
        lines.append(section)
        for finding in findings:
            if finding.section == section:
                mark = "!!" if finding.is_fatal else "! " if finding.problem else "  "
                lines.append(f" {mark} {finding.name:<{width}}  {finding.value}".rstrip())
    problems = sorted((f for f in findings if f.problem), key=lambda finding: not finding.is_fatal)
    lines.append("")
    for finding in problems:
        weight = "does not work" if finding.is_fatal else "warning"
        lines.append(f"{weight}: {finding.name}: {finding.problem}\n    remedy: {finding.remedy}")
    if not problems:
        lines.append("no problem found: preparing, training and resuming will work here")
    elif works(findings):
        lines.append("preparing, training and resuming will work here, but for the warnings")
    return "\n".join(lines)


def works(findings: list[Finding]) -> bool:
    """Whether text to checkpoint works."""
    return not any(finding.is_fatal for finding in findings)


def judged(finding: Finding, is_bad: bool, problem: str, remedy: str) -> Finding:
    """The finding, with a warning where it is bad."""
    return dataclasses.replace(finding, problem=problem, remedy=remedy) if is_bad else finding
