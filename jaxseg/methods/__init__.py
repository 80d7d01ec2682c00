"""The methods, one file per paper: each decides about tokens and moves nothing itself.

A method is what stands behind `config.method.name` (which tokens leave) or `config.method.merge`
(which patches share a token): the class of its decisions, made by `jaxseg.build`. An exit maps
`jaxseg.fates.Grades` to a `jaxseg.fates.Plan`, once per head after which tokens leave; a merge maps
window scores by side to accepted windows by side.
"""

from jaxseg.methods import cts, dcts, dtop

METHODS = {
    "dense": None,  # every token stays
    "dtop": dtop.Exit,
    "none": None,  # every patch has its own token
    "cts": cts.Share,
    "dcts": dcts.Merge,
}
