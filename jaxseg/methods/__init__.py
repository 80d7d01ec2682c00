"""The methods, one file per paper: each decides about tokens and moves nothing itself.

A method is what stands behind `config.method.name` (which tokens leave, or skip blocks) or
`config.method.merge` (which patches share a token), made by `jaxseg.build`. An exit maps
`jaxseg.fates.Grades` to a `jaxseg.fates.Plan`, once per head after which tokens leave; a merge maps
window scores by side to accepted windows by side. Those that look before or inside blocks are a
`jaxseg.models.method.Method`: cuts, gates, and a decision, `jaxseg.bypass.Look` to
`jaxseg.bypass.Choice`; their fields are those of `config.method` with the same name.
"""

from jaxseg.methods import ats, cts, dcts, dtop, dynamicvit, evit, evovit, svit

METHODS = {
    "dense": None,  # every token stays
    "dtop": dtop.Exit,
    "svit": svit.Skip,
    "dynamicvit": dynamicvit.Drop,
    "evit": evit.Fuse,
    "evovit": evovit.Wait,
    "ats": ats.Sample,
    "none": None,  # every patch has its own token
    "cts": cts.Share,
    "dcts": dcts.Merge,
}
