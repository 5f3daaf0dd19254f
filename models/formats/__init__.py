"""Checkpoints of other projects: how their configuration and weights read here, and how ours are written there.

A family of models is one file of this folder, which registers by being there. For each layout that the family is
published in it has a :class:`~linrec.models.formats.format.Format`: what ``config.json`` is known by, its options as a
:class:`~linrec.models.Config` and back (whatever cannot be expressed is refused by name), and its weights as
correspondences that hold in both directions, bit for bit.
"""
