"""Which row comes when: weights, phases and shuffles, in closed form."""
