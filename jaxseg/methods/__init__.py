"""The methods, one file per paper: each decides which tokens go on and moves nothing itself.

A method is what stands behind `config.method.name`, made by `jaxseg.build`. Those that look after
heads (dtop) are the class of a decision, `jaxseg.fates.Grades` to `jaxseg.fates.Plan`, made once
per head. Those that look before or inside blocks are a `jaxseg.models.sparse.Method`: cuts, gates
and a decision, `jaxseg.bypass.Look` to `jaxseg.bypass.Choice`. Their fields are those of
`config.method` with the same name.
"""

from jaxseg.methods import ats, dtop, dynamicvit, evit, evovit, svit

METHODS = {
    "dense": None,  # every token stays
    "dtop": dtop.Exit,
    "svit": svit.Skip,
    "dynamicvit": dynamicvit.Drop,
    "evit": evit.Fuse,
    "evovit": evovit.Wait,
    "ats": ats.Sample,
}
