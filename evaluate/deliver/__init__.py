"""Results for others: pictures, submissions, exports."""
