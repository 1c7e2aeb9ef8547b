"""Whether a form of a net is as good as the net: measured, judged, kept or refused."""
