"""Files written here, run by llama.cpp itself."""

import zoo  # noqa: F401 - first of all: it keeps transformers off the network
