"""What a run is: YAML groups composed by Hydra, checked against the dataclasses of `configs.schema`."""
