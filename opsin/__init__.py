"""opsin: multimodal instruction tuning, from pictures to a vision-language model of your own."""

__version__ = "0.1.0"
