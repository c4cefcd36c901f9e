"""Side-by-side measurements and reports; results are in reports/."""
