"""What is made out of a chart's commented values: its schema, its README, its list of images."""
