"""Rate and distortion of a codec, BD-rate, and the classical codecs beside it."""
