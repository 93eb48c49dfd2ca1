package main

// deathToElsewhere says what the times of agents' deaths are from and to.
const deathToElsewhere = "from the fault to the task's first beat elsewhere, less TTL and grace"
