"""What hetserve knows of GPUs nobody here owns: devices, links, models, prices (*.toml, each row with its source) and fits/ of published times."""
