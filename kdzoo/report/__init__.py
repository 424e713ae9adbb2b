"""What came out of a run: report.json, and the table at the end."""
