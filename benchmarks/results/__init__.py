"""Scripts that print the tables and draw the plots of docs/results."""
