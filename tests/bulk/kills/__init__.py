"""The kill harness of the bulk loader: `python -m tests.bulk.kills --kills 1000 --seed 7`."""
