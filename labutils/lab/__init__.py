"""The classroom: lessons, exercises, progress, recorded results, notebooks and pages."""
