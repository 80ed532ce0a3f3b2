"""train.run_report and train.report."""
