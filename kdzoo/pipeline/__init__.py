"""From a spec to a report: the teacher's run, the baseline's run, the student's run."""
