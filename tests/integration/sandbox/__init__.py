"""Tests of the stand-in for Creative Force's servers."""
