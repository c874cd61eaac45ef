# Names and addresses. An address with a password in it is a secret (database-url, redis-url) and is made by whoever
# makes the password; none is put together here.

output "url" {
  description = "What clients' base_url begins with."
  value       = "https://${aws_lb.this.dns_name}"
}

output "database_host" {
  value = aws_db_instance.this.address
}

output "cache_host" {
  value = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "secret_names" {
  description = "Where values are to be put, and how the settings refer to them: aws:NAME."
  value       = sort([for secret in aws_secretsmanager_secret.this : secret.name])
}
