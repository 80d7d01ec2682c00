"""The methods, one file per paper: each decides which tokens leave and moves nothing itself.

A method is what stands behind `config.method.name`: the class of its decisions, made by
`jaxseg.build` once per head after which tokens leave. A decision maps `jaxseg.fates.Grades` to a
`jaxseg.fates.Plan`.
"""

from jaxseg.methods import dtop

METHODS = {
    "dense": None,  # every token stays
    "dtop": dtop.Exit,
}
