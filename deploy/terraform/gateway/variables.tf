# Names, sizes and places. No variable takes a secret's value: there is none to leak into a plan or a state.

variable "name" {
  description = "What everything is called, e.g. wootz-prod."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,23}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 3 to 24 characters."
  }
}

variable "image" {
  description = "The gateway's image, by digest: repository@sha256:…"
  type        = string

  validation {
    condition     = can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "A tag can be moved to other contents after the plan was reviewed. Give the image by its digest."
  }
}

variable "vpc_id" {
  description = "The network, which is not this module's."
  type        = string
}

variable "subnets" {
  description = "Private subnets by their availability zone; one replica at least runs in each."
  type        = map(string)

  validation {
    condition     = length(var.subnets) >= 2
    error_message = "Two zones at least: one may be lost."
  }
}

variable "balancer_networks" {
  description = "The networks of those subnets. The balancer stands in them: what it says of who asks, and how, is believed."
  type        = list(string)

  validation {
    condition     = length(var.balancer_networks) > 0 && alltrue([for one in var.balancer_networks : can(cidrnetmask(one)) && !endswith(one, "/0")])
    error_message = "Networks such as 10.1.0.0/20, and not everybody's."
  }
}

variable "client_security_groups" {
  description = "Who may call, by what it is called in plans: agents, the bastion, the private link."
  type        = map(string)
}

variable "certificate_arn" {
  description = "The balancer's certificate (ACM)."
  type        = string
}

variable "secrets" {
  description = "Names of the secrets that the gateway may read, and what each is. Their values are put in by hand or by their own pipeline."
  type        = map(string)

  validation {
    condition     = alltrue([for name in keys(var.secrets) : can(regex("^[a-z][a-z0-9-]*$", name))])
    error_message = "Each secret by its name; a * would open all of them to whoever breaks in."
  }
}

variable "settings" {
  description = "Wootz's settings as WOOTZ_* variables, without that prefix. A secret is aws:NAME/…, never its value."
  type        = map(string)

  validation {
    condition = alltrue([
      for key, value in var.settings : can(regex("^(aws|env|file|vault):", value))
      if can(regex("(KEY|PASSWORD|TOKEN|SECRET|REDIS|DATABASE__URL)$", key))
    ])
    error_message = "A setting that holds a secret must be a reference such as aws:wootz-prod/openai."
  }
}

variable "replicas" {
  type = object({ min = number, max = number })

  validation {
    condition     = var.replicas.min >= 2 && var.replicas.max >= var.replicas.min
    error_message = "Two replicas at least, and no more at least than at most."
  }
}

variable "task" {
  description = "One replica: 1024 of cpu is a core, memory is MiB. 2 cores and 4 GiB carry several hundred requests a second."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 2048, memory = 4096 }
}

variable "drain_seconds" {
  description = "How long answers under way may go on when a replica is stopped. Fargate kills after 120 s."
  type        = number
  default     = 60

  validation {
    condition     = var.drain_seconds > 0 && var.drain_seconds <= 90
    error_message = "From 1 to 90."
  }
}

variable "database" {
  type = object({ class = string, storage_gib = number, backup_days = number })
}

variable "cache" {
  description = "The user group holds Redis' passwords. Made outside: in here they would be in the state."
  type        = object({ node_type = string, user_group_id = string })
}

variable "protected" {
  description = "Whether the database and the balancer refuse to be deleted."
  type        = bool
  default     = true
}

variable "log_days" {
  type    = number
  default = 90
}
