"""What SafeLens computes and costs beside other libraries; run from the repository's root."""
