"""The rooms behind mri_utils.py, on floors: a part imports only from floors below its own (docs/rooms.md)."""

import os

# The threads of torch spin while they wait for each other, which takes the cores from whoever else has work: beside
# another busy program an epoch of 35 s took 324 s, and 104 s with threads that sleep. It is read when torch is loaded,
# so mri_utils is imported before torch; whoever sets the variable decides.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
