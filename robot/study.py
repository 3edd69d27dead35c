'''A study: one claim about methods, the arms that test it, and what is expected of them, in one TOML file that
is written before the run. `ulna study FILE` runs it, see `study_run.py`.

```toml
name = "mip_fork"                      # of the results: benchmarks/results/studies/mip_fork.json
claim = "..."                          # what the paper says, in a sentence or two
paper = "Authors, year, title (arXiv ...)"
expectation = "..."                    # in words, before the run: what we expect to see, and why
control_text = "..."                   # the negative control: where it should not help, and why
task = "fork"                          # a planar task of `ulna.sim.planar.all`
options = {routes = 2}                 # of the task; may be left out
demonstrations = {count = 50, seeds_from = 0, noise = 0.005}   # and what the task's expert takes: skill = "mixed"
seeds = [0, 1, 2, 3, 4]                # of the trainings
episodes = 100                         # for each training, of the seeds evaluation_seeds_from, +1, ...
evaluation_seeds_from = 10000          # the default; lower ones are for development
base = "regression"                    # the arm to which all are compared; the first by default

[common]                               # overrides of every arm's recipe, named as on the command line of
"backbone" = "ResidualMLP"             # `ulna train`: short names (steps) and long ones (training.steps), with
"training.steps" = 2000                # or without quotes; lists for several values or several parts

[arms.regression]
recipe = "regression_mlp"              # of `ulna recipes`; every other field is an override, before that of
                                       # [common] where both name one, or one of the six below
[arms.flow_10]
recipe = "flow"
sampling_steps = 10

[arms.flow_1]
of = "flow_10"                         # the same trained policy; only fields that act at test time may differ:
sampling_steps = 1                     # sampling_steps, solver, solver.*, steering, steering.PART.*,
                                       # n_action_steps, decoder, ensemble_decay; and request, given, delay

[arms.distilled]
recipe = "consistency"
"training.start" = "{flow_10}"         # the folder of that arm's checkpoint of the same variant and seed

# An arm may also have:
# learner = "iql"                      # instead of recipe: trained by another way than `ulna train`
# text = "..."                         # what it is, for the table
# data = {weights = "success", observe = ["observation.state"]}   # fields of `DataOptions`, and observe: which
#                                      # observations are used (all by default)
# request = {steps = 4, steering = [{part = "Inpaint"}]}          # options of every request
# given = {"label.quality" = [1.0]}    # arrays added to every request
# delay = 2                            # control ticks that pass until a chunk can be used; the one before is
#                                      # executed meanwhile

[variants.control]                     # the same arms again. The file itself is the variant "main"
options = {routes = 1}                 # changed options of the task, in demonstrations and evaluation
demonstrations = {count = 25}          # changed fields
evaluation_options = {}                # changed options of the task in the evaluation only
arms = ["regression", "flow_10"]       # all by default

[[expect]]                             # a value of one arm
arm = "flow_10"
at_least = 0.8                         # or at_most, or both
variant = "control"                    # "main" by default
metric = "success"                     # the default; any that is reported: score, ticks, reward, nfe,
                                       # mode_entropy, parameters, train_seconds, evaluation_seconds, ...
[[expect]]                             # a difference of two arms, paired by training and evaluation seed:
better = "flow_10"                     # metric of `better` - metric of `than` > by (0 by default);
than = "regression"                    # `less` instead of `better` for metrics that should be small
by = 0.3
[[expect]]                             # no difference worth the name, for controls
alike = ["flow_10", "regression"]
within = 0.1
variant = "control"
```

A condition `goal.<key>` of a policy is `observation.goal` of the environment; `prompt.*` are demonstrations of
the same instruction; other conditions are what `given` says. Trainings that variants have in common are done
once.'''
