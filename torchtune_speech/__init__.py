"""Speech encoders joined to large language models, as recipes for torchtune."""

__version__ = "0.1.0"
