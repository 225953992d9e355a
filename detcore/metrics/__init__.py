"""How good detections are, by the measures of the data sets' own evaluations."""
