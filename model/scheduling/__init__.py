"""Which sequences run in a step, and where their keys lie: no tensors here."""
