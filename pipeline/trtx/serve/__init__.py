"""The OpenAI API over an engine: `trtx serve`."""
