def page(found): return ''
def problems(found): return [f"{f.job.row} {f.case} {f.declaration}: {f.outcome}" for f in found if f.job.way=="eadem" and not f.allowed]
